"""Live answers: who generates text for a task within a token cap, who checks it, and how answers become a table.

``base`` is the protocol, ``local`` a Hugging Face model in this process, ``recording`` a resumable journal and the outcome
table made of it.
"""
