"""What runs in the local sandbox's own processes. The standard library alone, and nothing else of this project: a program that is being run shares
the memory of a forked copy of this, so there must be nothing in it to find.

launcher.py     the long-lived process that forks one run after another
chamber.py      the room for one run: what it sees, who it is, what it may take; namespaces.py and restricted.py are the two ways
warden.py       pid 1 of a run: watches it, ends it, reports
program.py      the forked child becoming the program
kernel.py       system calls that Python 3.11 does not have
"""
