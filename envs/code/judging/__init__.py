"""Judges a solution from outside its process. Runs inside a sandbox, as a program of the standard library alone: nothing else of this project is there.

    stdin: solution and tests ──▶ referee ──start, inputs──▶ nursery ──fork──▶ the solution
    stdout: verdict, nonce   ◀──  compares  ◀──────── outputs, or values as plain data ─────┘

The nursery is forked before a single byte of stdin is read: no process of the solution ever holds an expected value, in memory or elsewhere. What comes
back is text, or values in a format of plain data: lists, numbers, strings. So a solution cannot answer with an object that equals everything, and whatever it
prints, patches, exits with or kills, the comparison is made where it is not. The referee and the nursery are not dumpable, so that their memory and
descriptors are out of reach for a process of the same user; where they are root, the solution becomes nobody.

The verdict is one line of JSON with the nonce from stdin, which the solution has never seen.
"""
