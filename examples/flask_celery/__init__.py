"""A web app whose long jobs survive deploys, on Celery."""
