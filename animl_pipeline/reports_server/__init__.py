"""Serve the reports of a store over HTTP, read-only and behind a password: an index, each report with its tables, comparisons.

::

    catalogue          what the store holds: models, versions, releases, pages
    compare_versions   the scores of two versions, with differences and intervals
    report_app         the pages; which files may be served; who may ask
"""
