"""`python -m mpcache` is the command `mpcache`, found by name: nothing here imports what stands above it."""

from importlib import import_module

import_module("mpcache.parties.command.main").main()
