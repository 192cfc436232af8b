"""`python -m emscope`."""

from emscope.cli import main

main()
