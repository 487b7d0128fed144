/* What a program leaves in the folder `out`, handed to the service; see collect.c. */

#ifndef RUNTAPE_COLLECT_H
#define RUNTAPE_COLLECT_H

/* Open the folder when there is anything in it; else -1. */
int open_out(void);

/* Wait for the service to ask for what is in `folder`, and send it; returns early when the service does not want it. */
void hand_over_files(int channel, int folder);

#endif
