"""`python -m benchmarks.accuracy`: the functions live in score.py, where worker processes can find them."""

from benchmarks.accuracy.score import main

if __name__ == "__main__":
    main()
