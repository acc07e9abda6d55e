"""Models from and to other projects."""
