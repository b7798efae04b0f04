"""From files of any common form to texts."""
