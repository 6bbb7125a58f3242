"""The variational bound, the likelihood of the probability flow, and what follows from one pass over the data."""
