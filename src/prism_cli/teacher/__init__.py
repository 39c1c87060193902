"""The teacher: a chat model that answers rows, its prompting, its answers, and a server for one of our own."""
