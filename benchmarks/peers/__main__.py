from benchmarks.peers import size_table

print(size_table())
