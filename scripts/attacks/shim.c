/* Loaded before the C library (LD_PRELOAD) by scripts/attack. ATTACK_CALL names one of the calls
 * below; its ATTACK_AT-th use fails with ATTACK_ERRNO, and from then on each one where ATTACK_STAYS
 * is 1, as on a disk that stays full. With ATTACK_CLOCK, a seed, the wall clock jumps to and fro.
 * Writing to descriptors 0 to 2 never fails: those have attacks of their own. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/types.h>
#include <time.h>
#include <unistd.h>

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

static int due(const char *call) {
  static atomic_int uses;
  const char *wanted = getenv("ATTACK_CALL");
  if (!wanted || strcmp(wanted, call) != 0) return 0;
  const int at = atoi(getenv("ATTACK_AT")), use = atomic_fetch_add(&uses, 1) + 1;
  const char *stays = getenv("ATTACK_STAYS");
  if (use != at && !(use > at && stays && *stays == '1')) return 0;
  errno = atoi(getenv("ATTACK_ERRNO"));
  return 1;
}

ssize_t write(int file, const void *bytes, size_t count) {
  if (file > 2 && due("write")) return -1;
  /* A short write is no error, and the caller must go on. */
  if (file > 2 && count > 1 && due("short")) count /= 2;
  return REAL(write)(file, bytes, count);
}
int fsync(int file) { return due("fsync") ? -1 : REAL(fsync)(file); }
int fdatasync(int file) { return due("fdatasync") ? -1 : REAL(fdatasync)(file); }
int close(int file) {
  if (file > 2 && due("close")) {
    const int code = errno;
    REAL(close)(file);
    errno = code;
    return -1;
  }
  return REAL(close)(file);
}
int rename(const char *from, const char *to) {
  return due("rename") ? -1 : REAL(rename)(from, to);
}
int renameat2(int a, const char *from, int b, const char *to, unsigned flags) {
  return due("renameat2") ? -1 : REAL(renameat2)(a, from, b, to, flags);
}
int mkdir(const char *path, mode_t mode) { return due("mkdir") ? -1 : REAL(mkdir)(path, mode); }
int symlink(const char *to, const char *path) { return due("symlink") ? -1 : REAL(symlink)(to, path); }
int unlink(const char *path) { return due("unlink") ? -1 : REAL(unlink)(path); }
int ftruncate(int file, off_t size) { return due("ftruncate") ? -1 : REAL(ftruncate)(file, size); }
int open(const char *path, int flags, ...) {
  va_list more;
  va_start(more, flags);
  const int mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(more, int) : 0;
  va_end(more);
  if ((flags & O_CREAT) && due("open")) return -1;
  return REAL(open)(path, flags, mode);
}

static long jump(void) {
  const char *seed = getenv("ATTACK_CLOCK");
  if (!seed) return 0;
  static atomic_uint calls;
  unsigned state = (unsigned)atoi(seed) * 2654435761u + atomic_fetch_add(&calls, 1) / 8 * 40503u;
  state ^= state >> 15;
  return (long)(state % 2000001u) - 1000000; /* within twelve days, both ways */
}
int clock_gettime(clockid_t which, struct timespec *now) {
  const int result = REAL(clock_gettime)(which, now);
  if (result == 0 && which == CLOCK_REALTIME) now->tv_sec += jump();
  return result;
}
int gettimeofday(struct timeval *restrict now, void *restrict zone) {
  const int result = REAL(gettimeofday)(now, zone);
  if (result == 0) now->tv_sec += jump();
  return result;
}
time_t time(time_t *now) {
  struct timespec exact;
  clock_gettime(CLOCK_REALTIME, &exact);
  if (now) *now = exact.tv_sec;
  return exact.tv_sec;
}
