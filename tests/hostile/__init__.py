"""Peers that misbehave on purpose. What each of them does is listed by name (`CLIENTS`, `OWNERS`, `DEALERS`), with what
the others must say of it; tests run every entry, so a new way to misbehave, or a new thing to misbehave against, is
tried by being listed."""
