"""The commands, which Django finds by the names of their files. Private to this package."""
