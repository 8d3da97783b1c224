"""Scripts that answered one question once; each names the commit it last ran at."""
