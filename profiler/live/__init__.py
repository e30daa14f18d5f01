"""The dashboard's figures of a source, live or finished: `feed` answers, from what `state` has taken in."""
