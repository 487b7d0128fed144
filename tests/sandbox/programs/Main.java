import java.io.BufferedReader;
import java.io.BufferedWriter;
import java.io.InputStreamReader;
import java.io.OutputStreamWriter;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;

public class Main {
    public static void main(String[] args) throws Exception {
        switch (args[0]) {
            case "stdin" -> {
                var in = new BufferedReader(new InputStreamReader(System.in));
                for (String line; (line = in.readLine()) != null; ) System.out.println("got " + line);
            }
            case "args" -> {
                for (int i = 1; i < args.length; i++) System.out.println("[" + args[i] + "]");
            }
            case "files" -> System.out.print(Files.readString(Path.of("data/in.txt")));
            case "text" -> System.out.println("žluťoučký 雪 🎉");
            case "exit" -> System.exit(7);
            case "stderr" -> {
                System.out.println("to stdout");
                System.err.println("to stderr");
            }
            case "uncaught" -> throw new RuntimeException("boom");
            case "sleep" -> Thread.sleep(60_000);
            case "hog" -> {
                List<byte[]> held = new ArrayList<>();
                while (true) held.add(new byte[4 << 20]);
            }
            case "flood" -> {
                var out = new BufferedWriter(new OutputStreamWriter(System.out));
                for (int n = 0; n < 1_000_000; n++) out.write("%09d\n".formatted(n));
                out.flush();
            }
        }
    }
}
