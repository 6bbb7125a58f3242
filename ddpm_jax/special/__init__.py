"""Models with closed forms, and the framework of 2015."""
