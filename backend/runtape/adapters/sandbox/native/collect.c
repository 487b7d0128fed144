/* Hands the service what a program has left in `out`.

   Theory of operation.  Pid 1 does this, confined as the program was and as the same user, after it has reaped the
   last process of the box: nothing can change while it looks.  It has told the end already, so that nothing which
   happens from here on (a limit, a kill, a full memory) changes how the program is said to have ended.  The service
   then asks for the files and says how many, and how many bytes, it takes; pid 1 answers with names and bytes.  So no
   descriptor, path or folder of the program's making ever reaches a process outside of the box.

   Nothing is followed: folders are opened by name in their parent, never through a link, and a file is opened only once
   it is seen to be regular, and looked at again through its descriptor.  A file counts by its size, of which a hole is
   part, and one that does not fit is left out unread.  Files go in the order of their whole paths, byte by byte, so that
   which of them do not fit is no accident.  What is left out is counted by its reason. */

#define _GNU_SOURCE
#include "collect.h"

#include "confine.h"

#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#define OUT "out"
#define FOLDER_FLAGS (O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC)
#define FILE_FLAGS (O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY | O_CLOEXEC)

struct walk {
    int channel;
    struct collect room;
    struct left_out left_out;
    char message[DATAGRAM_BYTES];
    char path[ARTIFACT_PATH_BYTES + 1];
};

int open_out(void) {
    char entries[1024] __attribute__((aligned(8))); /* room for the two dots and for one name of any length */
    int folder = open(OUT, FOLDER_FLAGS);
    if (folder < 0) return -1;
    long length = syscall(SYS_getdents64, folder, entries, sizeof entries);
    for (long at = 0; at < length;) {
        const struct dirent64 *entry = (const struct dirent64 *)(entries + at);
        if (strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0) {
            lseek(folder, 0, SEEK_SET);
            return folder;
        }
        at += entry->d_reclen;
    }
    close(folder);
    return -1;
}

static int by_bytes(const void *one, const void *other) { return strcmp(*(char *const *)one, *(char *const *)other); }

/* The names in `folder`, sorted; one of a folder has a slash at its end, which sorts it as the paths below it are. */
static char **names_in(DIR *folder, size_t *count) {
    char **names = NULL;
    size_t room = 0;
    const struct dirent *entry;
    *count = 0;
    while ((entry = readdir(folder)) != NULL) {
        if (strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0) continue;
        if (*count == room) {
            char **more = realloc(names, (room = room ? 2 * room : 64) * sizeof *names);
            if (more == NULL) _exit(0); /* the service sees that there is no end to it */
            names = more;
        }
        if (asprintf(&names[*count], "%s%s", entry->d_name, entry->d_type == DT_DIR ? "/" : "") < 0) _exit(0);
        ++*count;
    }
    if (names != NULL) qsort(names, *count, sizeof *names, by_bytes);
    return names;
}

/* Send a file's path, its size and its bytes.  Ends when it cannot: the service sees that the last message lacks. */
static void send_file(struct walk *walk, int fd, uint64_t size) {
    uint32_t length = strlen(walk->path);
    struct artifact head = {ARTIFACT, length, size};
    memcpy(walk->message, &head, sizeof head);
    memcpy(walk->message + sizeof head, walk->path, length);
    if (send_with(walk->channel, walk->message, sizeof head + length, NULL, 0) < 0) _exit(0);
    struct piece piece = {PIECE};
    memcpy(walk->message, &piece, sizeof piece);
    while (size > 0) {
        size_t most = sizeof walk->message - sizeof piece;
        ssize_t got = read(fd, walk->message + sizeof piece, size < most ? size : most);
        if (got <= 0 || send_with(walk->channel, walk->message, sizeof piece + got, NULL, 0) < 0) _exit(0);
        size -= got;
    }
}

static void take_file(struct walk *walk, int folder, const char *name) {
    struct stat file;
    /* By its name first: to open a FIFO, a socket or a device is an act in itself. */
    if (fstatat(folder, name, &file, AT_SYMLINK_NOFOLLOW) < 0 || !S_ISREG(file.st_mode)) {
        walk->left_out.not_regular++;
    } else if (walk->room.files == 0) {
        walk->left_out.too_many++;
    } else if ((uint64_t)file.st_size > walk->room.bytes) {
        walk->left_out.too_large++;
    } else {
        int fd = openat(folder, name, FILE_FLAGS);
        if (fd < 0 || fstat(fd, &file) < 0) {
            walk->left_out.unreadable++;
        } else if (!S_ISREG(file.st_mode) || (uint64_t)file.st_size > walk->room.bytes) {
            walk->left_out.not_regular++;
        } else {
            walk->room.files--;
            walk->room.bytes -= file.st_size;
            send_file(walk, fd, file.st_size);
        }
        close_if(&fd);
    }
}

/* Take what lies in the folder `fd`, whose path is the first `length` bytes of `walk->path`; closes `fd`. */
static void take_folder(struct walk *walk, int fd, size_t length, int depth) {
    DIR *folder = fdopendir(fd);
    if (folder == NULL) {
        walk->left_out.unreadable++;
        close(fd);
        return;
    }
    size_t count;
    char **names = names_in(folder, &count);
    for (size_t i = 0; i < count; i++) {
        size_t end = length + strlen(names[i]);
        if (end > ARTIFACT_PATH_BYTES) {
            walk->left_out.bad_name++;
            continue;
        }
        strcpy(walk->path + length, names[i]);
        if (walk->path[end - 1] != '/') {
            take_file(walk, dirfd(folder), names[i]);
            continue;
        }
        int below = depth < ARTIFACT_DEPTH ? openat(dirfd(folder), names[i], FOLDER_FLAGS) : -1;
        if (below >= 0)
            take_folder(walk, below, end, depth + 1);
        else if (depth < ARTIFACT_DEPTH)
            walk->left_out.unreadable++;
        else
            walk->left_out.too_deep++;
    }
    for (size_t i = 0; i < count; i++) free(names[i]);
    free(names);
    closedir(folder);
}

void hand_over_files(int channel, int folder) {
    static struct walk walk;
    int fds[MESSAGE_FDS], count;
    if (receive(channel, &walk.room, sizeof walk.room, fds, &count) != sizeof walk.room) return;
    walk.channel = channel;
    walk.left_out.kind = LEFT_OUT;
    take_folder(&walk, folder, 0, 1);
    send_with(channel, &walk.left_out, sizeof walk.left_out, NULL, 0);
}
