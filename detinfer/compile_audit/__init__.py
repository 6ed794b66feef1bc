"""``detinfer doctor --compile-audit``: every GPU kernel compiled without a GPU, and read.

- ``cases``: what is compiled, an op a file;
- ``audit``: all of it, and what was found put together;
- ``workers``: the spawned processes that compile; ``tasks``: what they are given to do;
- ``compiling``: one compilation, and what is read from it;
- ``machine_code``: PTX as instructions and accumulator chains;
- ``rules``: what it must show;
- ``source_lint``: what machine code cannot show;
- ``command``: progress, table, JSON and exit status.
"""
