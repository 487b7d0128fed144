#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

struct block {
    struct block *next;
    char bytes[4 << 20];
};

int main(int argc, char **argv) {
    const char *which = argv[1];
    char line[100];
    if (strcmp(which, "stdin") == 0) {
        while (fgets(line, sizeof line, stdin)) printf("got %s", line);
    } else if (strcmp(which, "args") == 0) {
        for (int i = 2; i < argc; i++) printf("[%s]\n", argv[i]);
    } else if (strcmp(which, "files") == 0) {
        FILE *file = fopen("data/in.txt", "r");
        while (fgets(line, sizeof line, file)) fputs(line, stdout);
    } else if (strcmp(which, "text") == 0) {
        puts("žluťoučký 雪 🎉");
    } else if (strcmp(which, "exit") == 0) {
        exit(7);
    } else if (strcmp(which, "stderr") == 0) {
        puts("to stdout");
        fputs("to stderr\n", stderr);
    } else if (strcmp(which, "uncaught") == 0) {
        fputs("boom\n", stderr);
        abort();
    } else if (strcmp(which, "sleep") == 0) {
        sleep(60);
    } else if (strcmp(which, "hog") == 0) {
        for (struct block *held = NULL;;) {
            struct block *block = malloc(sizeof *block);
            memset(block->bytes, 1, sizeof block->bytes);
            block->next = held;
            held = block;
        }
    } else if (strcmp(which, "flood") == 0) {
        for (int n = 0; n < 1000000; n++) printf("%09d\n", n);
    }
}
