"""gradscope: which layer starts an explosion, whether it is about to happen, and which threshold holds."""
