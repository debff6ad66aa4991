"""The embedded stack: Airflow and MLflow on one machine, from one state folder, without containers."""
