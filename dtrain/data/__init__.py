"""The data plane: a pure order, a reader told by it what to read, and workers that decode whole batches."""
