// Has no code: its target owns the precompiled headers of the tests.
