"""Work cut into independent tasks: a plan that is JSON, receipts that prove what was done, one atomic commit.

    plan (headers only)  →  tasks  →  executors (threads, Ray, ranks)  →  receipts  →  commit (one rename)

A worker gets a plan and a task's number, and nothing else. Running the same command again makes the same plan, keeps
every receipt whose bytes still have their digest, and does the rest.
"""
