/* Stands for a disk that loses what was not synchronised: with each fsync or fdatasync of a file under DURABLE_FROM, the file as it is then
   is copied to DURABLE_TO. What lies there is what a power loss would leave: the copy takes its place at once, so that a kill on the way leaves
   the one before. Loaded with LD_PRELOAD. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static void keep(int fd) {
    char link[64], path[4096], to[8192], scratch[8256], buffer[65536];
    const char *from = getenv("DURABLE_FROM"), *into = getenv("DURABLE_TO");
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1), got;
    if (length < 0 || !from || !into) return;
    path[length] = 0;
    if (strncmp(path, from, strlen(from)) != 0) return;
    snprintf(to, sizeof to, "%s/%s", into, strrchr(path, '/') + 1);
    snprintf(scratch, sizeof scratch, "%s.%d.copy", to, (int)gettid());
    int in = open(path, O_RDONLY), out = open(scratch, O_WRONLY | O_CREAT | O_TRUNC, 0600);
    while (in >= 0 && out >= 0 && (got = read(in, buffer, sizeof buffer)) > 0)
        if (write(out, buffer, got) != got) abort();
    if (in >= 0) close(in);
    if (out >= 0) close(out);
    if (in >= 0 && out >= 0 && rename(scratch, to) != 0) abort();
}

int fsync(int fd) {
    int done = ((int (*)(int))dlsym(RTLD_NEXT, "fsync"))(fd);
    if (done == 0) keep(fd);
    return done;
}

int fdatasync(int fd) {
    int done = ((int (*)(int))dlsym(RTLD_NEXT, "fdatasync"))(fd);
    if (done == 0) keep(fd);
    return done;
}
