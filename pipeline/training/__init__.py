"""SAFECLIP's rounds: `loop` says which pass comes next, `schedule` lists them all, `one_pass` takes one."""
