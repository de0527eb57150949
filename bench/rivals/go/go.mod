module poll

go 1.19
