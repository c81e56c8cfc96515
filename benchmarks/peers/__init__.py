"""What trio_sse is measured against: each written as well as we can, with no more to do than what is measured."""
