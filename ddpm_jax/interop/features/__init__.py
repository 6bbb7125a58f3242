"""Weights of the networks whose features metrics compare: files that their users have, into parameters of ours."""
