"""MPCache: private inference of large language models by secure multi-party computation.

The public names are those of `__all__`, and docs/library.md shows them. `__init__.pyi` says where each one is; it is
loaded when it is first used, so that `import mpcache` is quick.
"""

import lazy_loader

__version__ = "0.1.0"
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
