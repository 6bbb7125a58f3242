"""Commands for people who build and compare: nothing but the command line imports them."""
