"""Is everything fit for a run? Facts are gathered in thin code, findings are made in pure code."""
