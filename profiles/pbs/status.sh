#!/bin/sh
# Tell Snakemake of a job: running, success or failed. PBS keeps a finished job's record for a while (-x); Torque shows it as C.
# A qstat that does not answer says nothing of the job, which is asked for again.
said=$(qstat -x -f "$1" 2>&1 || qstat -f "$1" 2>&1)
case $said in
    *"job_state = F"* | *"job_state = C"*)
        case $said in
            *"xit_status = 0"*) echo success ;;
            *) echo failed ;;
        esac ;;
    *"Unknown Job"*) echo failed ;;
    *) echo running ;;
esac
