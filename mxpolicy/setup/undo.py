"""How what set-up did is taken back: pure functions of what is there and what was kept.

A file that nothing else has changed since becomes what it was before, byte for byte. In
another one each step is taken back by itself, the last one first: our own line goes, a
line that it replaced comes back, and all other lines stay. A step that is undone already
changes nothing, so a run that was killed can be repeated.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from mxpolicy.setup.cf_text import entries, find, put_back, squeeze
from mxpolicy.setup.kept import Kept, KeptFile, digest
from mxpolicy.setup.postfix_lines import OWN
from mxpolicy.setup.steps import WHOLE

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from mxpolicy.setup.disk import Labels
    from mxpolicy.setup.steps import Plan, Step

__all__ = ["Texts", "Undone", "aside_of", "kept_with", "kind_of", "taken_back"]

Texts = dict[str, str | None]


class Undone(NamedTuple):
    """What taking back would lead to.

    Attributes:
        texts: What each file would be, by its path; None where it would go.
        aside: Those that go and were changed since: their text is kept beside them.
        notes: What stays otherwise than one would think, a sentence each.
    """

    texts: Texts
    aside: frozenset[str]
    notes: tuple[str, ...]


def taken_back(kept: Kept, there: Mapping[str, str | None]) -> Undone:
    """Return what the files become.

    Args:
        kept: By set-up.
        there: What each file of *kept* is now, by its path.
    """
    texts: Texts = {}
    notes: list[str] = []
    for path, one in kept.files.items():
        text = there[path]
        if one.is_whole and digest(text) in {one.after, digest(one.before)}:
            texts[path] = one.before
            continue
        for step in reversed(_of(path, kept.steps)):
            text = _without(step, text, notes)
        texts[path] = text
    aside = {
        one.file
        for one in kept.steps
        if texts[one.file] is None
        and there[one.file] is not None
        and (there[one.file] != one.after or not kept.files[one.file].is_whole)
    }
    notes += [
        f"{path} was changed since: it is kept as {aside_of(path)}" for path in aside
    ]
    return Undone(texts, frozenset(aside), tuple(notes))


def aside_of(path: str) -> str:
    """Return where the text of *path* is kept: update-exim4.conf passes over a dot."""
    return f"{path}.undone"


def kept_with(
    kept: Kept | None,
    plan: Plan,
    mail_server: str,
    there: Mapping[str, str | None],
    labels: Mapping[str, Labels | None],
) -> Kept:
    """Return what is to be kept before *plan* is carried out.

    Args:
        kept: By an earlier set-up that is not undone.
        plan: What is to be done now. Its files are absolute paths.
        mail_server: ``postfix`` or ``exim``.
        there: What each file is now: those of *plan* and those of *kept*.
        labels: Of each file.
    """
    files = {}
    steps = {(one.file, one.key): one for one in kept.steps} if kept else {}
    if kept:
        clean = taken_back(kept, there).texts
        for path, one in kept.files.items():
            # Anything else that was changed since must outlive the undo.
            is_whole = (
                one.is_whole
                and clean[path] == one.before
                and not _is_by_others(path, kept.steps, there[path])
            )
            # Of a set-up that was killed, it may be what postconf -e made of it.
            label = one.labels if one.after is None else labels.get(path)
            files[path] = KeptFile(one.before, is_whole, labels=label)
    for path in dict.fromkeys(one.file for one in plan.steps):
        if path not in files:
            files[path] = KeptFile(there[path], labels=labels.get(path))
    for step in plan.steps:
        earlier = steps.get((step.file, step.key))
        # What was there before the first of them comes back, unless it came already.
        if earlier and _is_by(earlier, there[step.file]):
            step = step._replace(before=earlier.before)
        steps[step.file, step.key] = step
    return Kept(mail_server, files, tuple(steps.values()))


def _of(path: str, steps: Sequence[Step]) -> list[Step]:
    return [one for one in steps if one.file == path]


def kind_of(path: str) -> str:
    """Return the name of a file without its directory: main.cf, for one."""
    return path.rpartition("/")[2]


def _is_by(step: Step, text: str | None) -> bool:
    """Return whether *text* has what *step* made, as far as can be told."""
    if step.key == WHOLE:
        return True
    found = find(kind_of(step.file), text or "", step.key)
    return any(one.value == squeeze(step.after) for one in found)


def _without(step: Step, text: str | None, notes: list[str]) -> str | None:
    """Return *text* without what *step* did to it."""
    if step.key == WHOLE:
        return step.before
    if text is None:
        return None
    kind = kind_of(step.file)
    found = find(kind, text, step.key)
    if not found:
        if step.before is not None:
            notes.append(
                f"{step.key} was taken out since, and what was there before set-up does"
                f" not come back: {squeeze(step.before)}"
            )
        return text
    ours = [one for one in found if one.value == squeeze(step.after)]
    entry = (ours or found)[-1]
    if entry.value != squeeze(step.after):
        if any(one.value == entry.value for one in entries(kind, step.before or "")):
            return text
        if not _is_our_own(step):
            notes.append(
                f"{step.key} was changed since and stays: {step.key} = {entry.value}"
            )
            return text
        notes.append(f"{entry.value} was changed since; it is taken out all the same")
    return put_back(text, entry, step.before)


def _is_by_others(path: str, steps: Sequence[Step], text: str | None) -> bool:
    """Return whether a whole file of ours says what none of *steps* wrote."""
    ours = [one for one in _of(path, steps) if one.key == WHOLE]
    known = {None, *(text for one in ours for text in (one.before, one.after))}
    return bool(ours) and text not in known


def _is_our_own(step: Step) -> bool:
    """Return whether the entry is nothing without us, whatever it says by now."""
    return step.before is None and step.key.startswith(OWN)
