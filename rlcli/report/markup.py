"""HTML that is escaped unless it was made here."""

from __future__ import annotations

from html import escape

from rlcli.run_dir.rollout_files import printable

VOID = ("meta", "br")


class Markup(str):
    """Text that is HTML already. Only `tag`, `join` and `style` make it."""

    __slots__ = ()


Child = str | Markup | None


def plain(text: str) -> Markup:
    """Text as it is to be read: no tag, no control character, no mark that turns a line around."""
    return Markup(escape(printable(text), quote=True))


def tag(name: str, /, *children: Child, **attributes: str | float | None) -> Markup:
    """An element. Children that are no markup are escaped; so is every attribute.

    `class_` is class, `aria_label` is aria-label; None leaves a child or an attribute out.
    """
    words = [name]
    for key, value in attributes.items():
        if value is not None:
            words.append(f'{key.rstrip("_").replace("_", "-")}="{plain(str(value))}"')
    start = f"<{' '.join(words)}>"
    return Markup(start if name in VOID else f"{start}{join(*children)}</{name}>")


def join(*children: Child) -> Markup:
    """Children one after another."""
    parts = (c if isinstance(c, Markup) else plain(c) for c in children if c is not None)
    return Markup("".join(parts))


def style(css: str) -> Markup:
    """A style sheet of ours."""
    return Markup(f"<style>{css}</style>")


def clipped(text: str, limit: int) -> str:
    """At most `limit` characters, saying how many are missing."""
    more = len(text) - limit
    return text if more <= 0 else f"{text[:limit]} ... ({more:,} more characters)"
