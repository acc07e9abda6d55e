"""What runs inside a pod. It uses the standard library only, since it runs before anything is
installed; `cloud/start_command.py` puts these files into the pod.

    python3 -m cloud.pod dead_man    removes the pod when its time is up, whatever else happens
    python3 -m cloud.pod serve       receives the code, trains, and serves the results

A container restarts when its command ends, so what has happened is kept in files: when the pod
started, that the job started, and how it ended (`done.json`).
"""
