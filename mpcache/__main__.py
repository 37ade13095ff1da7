"""`python -m mpcache` is the command `mpcache`."""

from mpcache.cli import main

main()
