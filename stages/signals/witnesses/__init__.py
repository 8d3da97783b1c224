"""What speaks for or against a pair: other pairs, words, a tower that never saw the data, what doubted pictures look like."""
