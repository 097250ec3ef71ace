"""The data plane: a pure order, a reader told by it what to read, and threads that decode whole batches."""
