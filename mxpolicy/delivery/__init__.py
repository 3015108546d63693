"""One message, from envelope and mail data to an outcome for each recipient."""
