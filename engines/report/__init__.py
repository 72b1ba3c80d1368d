"""The report: records of one project, read, judged and drawn as one self-contained page.

Only words and pictures are made here; nothing else imports it but the command line.
"""
