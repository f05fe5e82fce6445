"""Why a run is slow, and why it stands: what ranks say of themselves, and what follows from it."""
