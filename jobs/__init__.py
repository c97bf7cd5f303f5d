"""The contract between server and workers: requests, jobs, storage, journal and queue. Imports no other
package of ours.
"""
