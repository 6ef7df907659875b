"""Operations with kernels of our own, one folder each, and what loads and compiles native code."""
