"""What outlives a message: a store of small values, kept by several means."""
