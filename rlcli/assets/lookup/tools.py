"""The tool of quickstart-tools: a table that the model cannot know by heart."""


def look(k: int) -> int:
    """Look up the digit that belongs to a key.

    Args:
        k: The key, from 0 to 999.
    """
    return (k * 7919 + 13) * 31 % 1009 % 10
