<?php
$rest = array_slice($argv, 2);
switch ($argv[1]) {
    case "stdin":
        while (($line = fgets(STDIN)) !== false) echo "got ", $line;
        break;
    case "args":
        foreach ($rest as $each) echo "[$each]\n";
        break;
    case "files":
        readfile("data/in.txt");
        break;
    case "text":
        echo "žluťoučký 雪 🎉\n";
        break;
    case "exit":
        exit(7);
    case "stderr":
        echo "to stdout\n";
        fwrite(STDERR, "to stderr\n");
        break;
    case "uncaught":
        throw new Exception("boom");
    case "sleep":
        sleep(60);
        break;
    case "hog":
        for ($held = []; ; ) $held[] = str_repeat("x", 4_000_000);
    case "flood":
        for ($n = 0; $n < 1_000_000; $n++) printf("%09d\n", $n);
}
