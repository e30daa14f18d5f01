"""One module a screen: a function of a snapshot, the viewer's choices and a size, to lines."""
