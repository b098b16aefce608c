"""How speech data lie on disk: one module a layout; `find` tells which one, and reads its rows."""
