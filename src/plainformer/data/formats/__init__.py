"""One module for each family of formats. A reader takes a `Reading` and yields rows; none is held in memory that need not be."""
